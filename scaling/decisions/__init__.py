"""What a fit is for: auditing it, planning with it, comparing two."""
