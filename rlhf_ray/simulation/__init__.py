"""The real pool, ledger, reactor and rollout service on simulated time and simulated generators."""
