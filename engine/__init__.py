"""The shell: loops, jobs, backup, restore, API and command line."""
