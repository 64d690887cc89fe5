//! A UDP socket for quinn on turmoil's simulated network, with the weather that turmoil does not make: single datagrams
//! that are lost or come twice, and lines that carry no more than so many bytes a second.
//!
//! turmoil delays, reorders and cuts. Its sockets are asynchronous functions, quinn wants to poll; so a task takes what
//! arrives and puts it into a bounded inbox, which is polled.

use std::{
    collections::{HashMap, VecDeque},
    fmt, io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
    time::Duration,
};

use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit},
};
use tidelog_tests::dice::Dice;
use tokio::{
    task::AbortHandle,
    time::{Instant, sleep_until},
};
use turmoil::net::UdpSocket;

/// Datagrams that have arrived and were not taken; one more is lost, as in any computer.
const INBOX: usize = 1024;
/// No datagram is longer.
const DATAGRAM: usize = 2048;

/// What becomes of datagrams, of all sockets that share it.
#[derive(Debug)]
pub(crate) struct Weather {
    dice: Dice,
    /// Of a hundred datagrams so many are lost,
    pub(crate) lost: u64,
    /// and so many come twice.
    pub(crate) doubled: u64,
    /// What the line to a device carries, bytes in a second. What comes faster waits in turmoil's queue of the socket, and is
    /// lost when that is full, as before a modem.
    pub(crate) lines: HashMap<IpAddr, f64>,
    /// Datagrams that were lost, and that came twice.
    pub(crate) met: (u64, u64),
}

impl Weather {
    /// Fair, until it is told otherwise.
    pub(crate) fn new(seed: u64) -> Self {
        Self { dice: Dice(seed), lost: 0, doubled: 0, lines: HashMap::new(), met: (0, 0) }
    }

    /// How many copies of a datagram go out.
    fn copies(&mut self) -> usize {
        if self.dice.roll(100) < self.lost {
            self.met.0 += 1;
            return 0;
        }
        let doubled = self.dice.roll(100) < self.doubled;
        self.met.1 += u64::from(doubled);
        1 + usize::from(doubled)
    }
}

/// The socket of one host.
pub(crate) struct Socket {
    udp: Arc<UdpSocket>,
    address: SocketAddr,
    inbox: Arc<Mutex<Inbox>>,
    weather: Arc<Mutex<Weather>>,
    pump: AbortHandle,
}

#[derive(Default)]
struct Inbox {
    datagrams: VecDeque<(Vec<u8>, SocketAddr)>,
    reader: Option<Waker>,
}

impl Socket {
    /// Binds the address on the host that this runs on.
    pub(crate) async fn bind(address: SocketAddr, weather: Arc<Mutex<Weather>>) -> io::Result<Arc<Self>> {
        let udp = Arc::new(UdpSocket::bind(("0.0.0.0", address.port())).await?);
        let inbox = Arc::new(Mutex::new(Inbox::default()));
        let pump =
            tokio::spawn(pump(Arc::clone(&udp), address.ip(), Arc::clone(&inbox), Arc::clone(&weather)))
                .abort_handle();
        Ok(Arc::new(Self { udp, address, inbox, weather, pump }))
    }
}

async fn pump(udp: Arc<UdpSocket>, here: IpAddr, inbox: Arc<Mutex<Inbox>>, weather: Arc<Mutex<Weather>>) {
    let mut datagram = vec![0; DATAGRAM];
    let mut free_at = Instant::now();
    while let Ok((size, from)) = udp.recv_from(&mut datagram).await {
        let rate = weather.lock().unwrap().lines.get(&here).copied();
        if let Some(rate) = rate {
            free_at = free_at.max(Instant::now()) + Duration::from_secs_f64(size as f64 / rate);
            sleep_until(free_at).await;
        }
        let mut inbox = inbox.lock().unwrap();
        if inbox.datagrams.len() < INBOX {
            inbox.datagrams.push_back((datagram[..size].to_vec(), from));
        }
        if let Some(reader) = inbox.reader.take() {
            reader.wake();
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.pump.abort();
    }
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket").field("address", &self.address).finish_non_exhaustive()
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Ready)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let size = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        for datagram in transmit.contents.chunks(size) {
            let to = transmit.destination;
            for _ in 0..self.weather.lock().unwrap().copies() {
                self.udp.try_send_to(datagram, to)?;
            }
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [io::IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut inbox = self.inbox.lock().unwrap();
        let mut count = 0;
        for (buf, meta) in bufs.iter_mut().zip(meta) {
            let Some((datagram, addr)) = inbox.datagrams.pop_front() else { break };
            buf[..datagram.len()].copy_from_slice(&datagram);
            let (len, stride) = (datagram.len(), datagram.len());
            *meta = RecvMeta { addr, len, stride, ecn: None, dst_ip: None };
            count += 1;
        }
        if count == 0 {
            inbox.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(count))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

/// turmoil takes what is sent at once.
#[derive(Debug)]
struct Ready;

impl UdpPoller for Ready {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
