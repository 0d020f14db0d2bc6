"""Four processes that accept on one socket, whose parent collects none of them."""
import os
import socket

listener = socket.create_server(("", 8080))
for _ in range(4):
    if os.fork() == 0:
        while True:
            connection, _ = listener.accept()
            connection.recv(4096)
            if os.fork() == 0:
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nforked")
                os._exit(0)
            connection.close()
while True:
    os.read(os.pipe()[0], 1)
