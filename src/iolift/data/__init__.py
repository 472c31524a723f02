"""Files that come with iolift: see README.md beside this file."""
