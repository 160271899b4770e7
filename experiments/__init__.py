"""Long runs whose records the lessons show: one script each, resumable; the records are in course_utils/data/."""
