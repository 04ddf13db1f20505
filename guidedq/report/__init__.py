"""The report: built from what the compiler knows, and written as JSON and as one page of HTML."""
