"""What fitted laws say: losses, sizes and compute with intervals, and groups compared. Reads the JSON of any fit."""
