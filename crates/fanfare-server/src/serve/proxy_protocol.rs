//! The PROXY protocol: a load balancer sends the address of the client before the data of the connection.
//!
//! Consumes exactly the header, because the bytes after it may be TLS.

use proxy_header::{ParseConfig, ProxyHeader};
use std::{io, net::SocketAddr};
use tokio::{io::AsyncReadExt, net::TcpStream};

/// The longest header of version 1, including its line break ("The PROXY protocol", section 2.1).
const MAX_LINE: usize = 107;

/// The fixed part of version 2. Its last two bytes are the length of the rest (section 2.2).
const FIXED: usize = 16;

/// The longest rest that is accepted: addresses and extensions of the balancer.
const MAX_REST: usize = 2_048;

/// The first byte of version 2.
const BINARY: u8 = b'\r';

const CONFIG: ParseConfig = ParseConfig { include_tlvs: false, allow_v1: true, allow_v2: true };

/// Reads the header. Returns the client's address, or `None` for the balancer's own connections, such as health checks.
pub(super) async fn read(stream: &mut TcpStream) -> io::Result<Option<SocketAddr>> {
    let mut first = [0];
    stream.peek(&mut first).await?;
    let header = if first[0] == BINARY { read_binary(stream).await? } else { read_line(stream).await? };
    let (header, _) = ProxyHeader::parse(&header, CONFIG).map_err(|error| wrong(&error.to_string()))?;
    Ok(header.proxied_address().map(|address| address.source))
}

async fn read_binary(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut header = vec![0; FIXED];
    stream.read_exact(&mut header).await?;
    let rest = usize::from(u16::from_be_bytes([header[FIXED - 2], header[FIXED - 1]]));
    if rest > MAX_REST {
        return Err(wrong("the PROXY header is too long"));
    }
    header.resize(FIXED + rest, 0);
    stream.read_exact(&mut header[FIXED..]).await?;
    Ok(header)
}

async fn read_line(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let (mut line, mut seen) = (Vec::new(), [0; MAX_LINE]);
    while line.len() < MAX_LINE {
        let room = MAX_LINE - line.len();
        let n = stream.peek(&mut seen[..room]).await?;
        let end = seen[..n].iter().position(|&byte| byte == b'\n');
        let mine = end.map_or(n, |end| end + 1);
        if mine == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        stream.read_exact(&mut seen[..mine]).await?;
        line.extend_from_slice(&seen[..mine]);
        if end.is_some() {
            return Ok(line);
        }
    }
    Err(wrong("the connection does not begin with a PROXY header"))
}

fn wrong(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proxy_header::ProxiedAddress;
    use tokio::{io::AsyncWriteExt, net::TcpListener};

    /// Reads the header from a balancer that sends `pieces`. Returns the result and the bytes after the header.
    async fn read_of(pieces: &[&[u8]]) -> (io::Result<Option<SocketAddr>>, Vec<u8>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut balancer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        let sending = async {
            for piece in pieces {
                balancer.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
            drop(balancer);
        };
        let (read, ()) = tokio::join!(read(&mut stream), sending);
        let mut left = vec![];
        let _ = stream.read_to_end(&mut left).await;
        (read, left)
    }

    #[tokio::test]
    async fn the_header_is_consumed_and_no_byte_after_it() {
        let client: SocketAddr = "203.0.113.9:4711".parse().unwrap();
        let mut binary = vec![];
        ProxyHeader::with_address(ProxiedAddress::stream(client, "10.0.0.1:443".parse().unwrap()))
            .encode_v2(&mut binary)
            .unwrap();
        let mut own = vec![];
        ProxyHeader::with_local().encode_v2(&mut own).unwrap();
        let line = b"PROXY TCP4 203.0.113.9 10.0.0.1 4711 443\r\n";
        for (header, whose) in
            [(&line[..], Some(client)), (b"PROXY UNKNOWN\r\n", None), (&binary, Some(client)), (&own, None)]
        {
            let whole = [header, b"GET / HTTP/1.1"].concat();
            let (read, left) = read_of(&[&whole]).await;
            assert_eq!((read.unwrap(), &left[..]), (whose, &b"GET / HTTP/1.1"[..]));
            let bytes: Vec<_> = whole.chunks(1).collect();
            let (read, left) = read_of(&bytes).await;
            assert_eq!((read.unwrap(), &left[..]), (whose, &b"GET / HTTP/1.1"[..]));
        }
    }

    #[tokio::test]
    async fn a_malformed_header_is_rejected() {
        let long = [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff"[..], &[0; 70_000]].concat();
        let endless = [b'P'; 300];
        for bytes in [&b"GET / HTTP/1.1\r\n"[..], b"", b"PROXY TCP4 203.0.", b"PROXY TCP4 x y 1 2\r\n", &long, &endless]
        {
            assert!(read_of(&[bytes]).await.0.is_err(), "{:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(40)]));
        }
    }
}
