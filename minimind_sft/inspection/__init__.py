"""What a training would really see of its data, and what is wrong with them."""
