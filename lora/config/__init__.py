"""Turn conf/ and command-line overrides into a validated RunConfig and its run_id."""
