"""From conf/ and command-line overrides to a validated RunConfig and its run_id."""
