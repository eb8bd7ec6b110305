"""The edges towards hypervisors, disks and the message bus."""
