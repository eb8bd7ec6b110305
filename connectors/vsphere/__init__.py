"""VMware vCenter."""
