"""Every node of a cluster starts with the right tracking, and says so."""
