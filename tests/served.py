"""A web server on the loopback, in the place of those that have MNIST."""

import functools
import http.server
import threading
import time
from contextlib import contextmanager


@contextmanager
def serving(folder, seconds=0.0):
    """Serve the files of ``folder``, each in that many seconds; yield the server's address."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

        def copyfile(self, source, outputfile):
            while piece := source.read(1 << 10):
                outputfile.write(piece)
                time.sleep(seconds * len(piece) / (folder / self.path[1:]).stat().st_size)

    httpd = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=folder)
    )
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{httpd.server_port}"
    finally:
        httpd.shutdown()
        thread.join()
        httpd.server_close()
