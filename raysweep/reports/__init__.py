"""What people look at: read records only, import neither torch nor ray."""
