"""What happened in a sweep: records, the folder they are kept in, and the statistics of their numbers."""
