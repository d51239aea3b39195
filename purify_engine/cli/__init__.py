"""The `purify-engine` command. Importing it imports no torch: a verb does, when it runs."""
