import os

bind = f"0.0.0.0:{os.environ['PORT']}"
workers = int(os.environ.get("WEB_CONCURRENCY", 2))
