"""A minimal RTSP server (RFC 2326) that plays an MPEG transport stream over the RTSP connection itself."""

import socketserver
import struct
import threading
import time

TS_PACKETS = 7  # of 188 bytes in each RTP packet (RFC 2250)
SDP = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=camera\r\nt=0 0\r\nm=video 0 RTP/AVP 33\r\na=control:track\r\n"  # MPEG-TS


class RtspHandler(socketserver.StreamRequestHandler):
    server: "RtspServer"

    def handle(self) -> None:
        while request := self._request():
            method, sequence = request[0].split(" ")[0], self._header(request, "CSeq")
            if method == "DESCRIBE":
                self._respond(sequence, "Content-Type: application/sdp", body=SDP)
            elif method == "SETUP":
                self._respond(sequence, "Transport: RTP/AVP/TCP;unicast;interleaved=0-1", "Session: 1")
            elif method == "PLAY":
                self._respond(sequence, "Session: 1")
                self._play()
                return
            else:
                self._respond(sequence, "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN")

    def _request(self) -> list[str]:
        lines = []
        while line := self.rfile.readline().decode().strip():
            lines.append(line)
        return lines

    @staticmethod
    def _header(request: list[str], name: str) -> str:
        return next(line.split(":")[1].strip() for line in request if line.startswith(name))

    def _respond(self, sequence: str, *headers: str, body: str = "") -> None:
        lines = ["RTSP/1.0 200 OK", f"CSeq: {sequence}", *headers, f"Content-Length: {len(body)}", "", body]
        self.wfile.write("\r\n".join(lines).encode())

    def _play(self) -> None:
        data, stall = self.server.parts.pop(0) if self.server.parts else (b"", 0.0)
        size = 188 * TS_PACKETS
        for number, start in enumerate(range(0, len(data), size)):
            payload = data[start : start + size]
            rtp = struct.pack(">BBHII", 0x80, 33, number & 0xFFFF, number * 900, 1) + payload
            self.wfile.write(struct.pack(">cBH", b"$", 0, len(rtp)) + rtp)
            time.sleep(self.server.pause)
        time.sleep(stall)


class RtspServer(socketserver.ThreadingTCPServer):
    """Play one of ``parts`` per connection: a transport stream, and seconds for which the connection then stalls."""

    daemon_threads, block_on_close, allow_reuse_address = True, False, True
    pause = 0.002  # seconds between packets

    def __init__(self, parts: list[tuple[bytes, float]]) -> None:
        super().__init__(("127.0.0.1", 0), RtspHandler)
        self.parts = list(parts)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, *_: object) -> None:
        """Ignore clients that disconnect early."""

    @property
    def address(self) -> str:
        return f"rtsp://127.0.0.1:{self.server_address[1]}/camera"
