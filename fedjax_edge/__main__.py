"""`python -m fedjax_edge` is the command line."""

from fedjax_edge.cli.main import main

if __name__ == "__main__":
    main()
