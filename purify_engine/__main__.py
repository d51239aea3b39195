"""`python -m purify_engine` is the `purify-engine` command."""

from purify_engine.cli.run import main

if __name__ == "__main__":
    main()
