import sys
from http.server import BaseHTTPRequestHandler, HTTPServer


class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"served in {sys.argv[4]}".encode())


HTTPServer(("0.0.0.0", int(sys.argv[2])), Answer).serve_forever()
