const http = require('http');
http.createServer((request, response) => {
  response.end(request.url === '/health' ? 'healthy' : 'nodejs/express');
}).listen(process.env.PORT || 5000, () => console.log('listening'));
