"""What the course does for a learner: a folder of their own, how far they are, quizzes, and their run beside ours."""
