"""python -m linscale is the command `linscale`."""

from linscale.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
