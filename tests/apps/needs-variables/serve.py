import os
from http.server import BaseHTTPRequestHandler, HTTPServer

database, greeting = os.environ["DATABASE_URL"], os.environ["GREETING"]


class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"{greeting} from {database}".encode())


HTTPServer(("0.0.0.0", int(os.environ["PORT"])), Answer).serve_forever()
