"""What must outlive the process: the records, locks and files of sessions."""
