"""`python -m requant` is the command `requant`."""

from typing import NoReturn

from requant import crash


def main() -> NoReturn:
    """Run the command; an installation that cannot be imported is no verdict either."""

    def command() -> int:
        from requant import cli

        return cli.main()

    crash.run(command)


if __name__ == "__main__":
    main()
