"""Where points come from: tables in files, and what other tools leave behind, read as tables."""
