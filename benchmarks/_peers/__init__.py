"""What a user would pick instead, each in an environment of its own and asked over a pipe."""
