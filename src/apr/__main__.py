"""``python -m apr`` is the same program as ``apr``."""

from apr.cli.main import main

if __name__ == "__main__":
    main()
