"""What users take away besides label maps: other formats, measures of what was found, pictures to look at."""
