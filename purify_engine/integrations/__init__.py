"""The engine in libraries of others. A module here imports its library when it is itself imported, and nothing else does."""
