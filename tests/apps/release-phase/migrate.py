print("== 20260101000000 CreateUsers: migrated (0.0020s)")
