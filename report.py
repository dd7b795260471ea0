def write_report(folders):
    return None
