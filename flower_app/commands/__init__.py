"""What ``python -m flower_app COMMAND`` runs: one module a command."""
