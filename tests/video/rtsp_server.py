"""A camera on the network: just enough of RTSP (RFC 2326) to play an MPEG transport stream over its own connection."""

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
                self._answer(sequence, "Content-Type: application/sdp", body=SDP)
            elif method == "SETUP":
                self._answer(sequence, "Transport: RTP/AVP/TCP;unicast;interleaved=0-1", "Session: 1")
            elif method == "PLAY":
                self._answer(sequence, "Session: 1")
                self._play()
                return
            else:
                self._answer(sequence, "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN")

    def _request(self) -> list[str]:
        lines = []
        while line := self.rfile.readline().decode().strip():
            lines.append(line)
        return lines

    @staticmethod
    def _header(request: list[str], name: str) -> str:
        return next(line.split(":")[1].strip() for line in request if line.startswith(name))

    def _answer(self, sequence: str, *headers: str, body: str = "") -> None:
        lines = ["RTSP/1.0 200 OK", f"CSeq: {sequence}", *headers, f"Content-Length: {len(body)}", "", body]
        self.wfile.write("\r\n".join(lines).encode())

    def _play(self) -> None:
        data, hang = self.server.parts.pop(0) if self.server.parts else (b"", 0.0)
        size = 188 * TS_PACKETS
        for number, start in enumerate(range(0, len(data), size)):
            payload = data[start : start + size]
            rtp = struct.pack(">BBHII", 0x80, 33, number & 0xFFFF, number * 900, 1) + payload
            self.wfile.write(struct.pack(">cBH", b"$", 0, len(rtp)) + rtp)
            time.sleep(self.server.pause)
        time.sleep(hang)


class RtspServer(socketserver.ThreadingTCPServer):
    """Plays ``parts`` to one connection after the other: a transport stream, and seconds for which it then hangs."""

    daemon_threads, block_on_close, allow_reuse_address = True, False, True
    pause = 0.002  # seconds between packets

    def __init__(self, parts: list[tuple[bytes, float]]) -> None:
        super().__init__(("127.0.0.1", 0), RtspHandler)
        self.parts = list(parts)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, *_: object) -> None:
        """People hang up in the middle."""

    @property
    def address(self) -> str:
        return f"rtsp://127.0.0.1:{self.server_address[1]}/camera"
