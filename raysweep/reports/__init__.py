"""What people look at: tables, pictures, TensorBoard. Reads records only; imports neither torch nor ray."""
