const http = require('http');

const items = ['push it'];
const server = http.createServer((request, response) => {
  response.setHeader('Content-Type', 'application/json');
  response.end(JSON.stringify({ items, secure: request.headers['x-forwarded-proto'] }));
});
server.listen(3000, () => console.log('Listening on port 3000'));

for (const signal of ['SIGINT', 'SIGTERM']) {
  process.on(signal, () => server.close(() => console.log('no request is left')));
}
