import os


def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    kept = "a secret key" if os.environ["SECRET_KEY"] else "no key"
    return [f"Getting started with {kept}".encode()]
