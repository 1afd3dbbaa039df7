"""When the pipeline runs: Prefect flows and the command line. No torch in here."""
