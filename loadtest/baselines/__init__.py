"""Systems that people write for the same job, as well as they can be written; see loadtest/README.md."""
