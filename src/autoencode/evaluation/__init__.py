"""What a model is worth, in numbers and in pictures: pure functions that know no model and no folder."""
