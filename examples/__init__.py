"""Extensions of the package from outside of it: one file and one configuration each."""
