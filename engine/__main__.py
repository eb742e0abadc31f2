"""`python -m engine` is `miaocang`."""

from engine.cli import main

if __name__ == "__main__":
    main()
