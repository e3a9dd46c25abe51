"""What a surrogate is worth in the place of a span, beside what is free."""
