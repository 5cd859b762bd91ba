"""``python -m config`` prints the JSON schema; ``python -m config check [FILE]`` checks a configuration."""

import argparse
import sys
from pathlib import Path

from config.errors import ConfigError
from config.loader import load_settings
from config.schema import schema_text


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 1 when the configuration checked cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m config", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    check = commands.add_parser("check", help="check a configuration together with this environment")
    check.add_argument("file", nargs="?", type=Path, help="default: the one that would be used")
    options = parser.parse_args(arguments)
    if options.command is None:
        sys.stdout.write(schema_text())
        return 0
    try:
        load_settings(options.file)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    print("ok")
    return 0


if __name__ == "__main__":
    sys.exit(main())
