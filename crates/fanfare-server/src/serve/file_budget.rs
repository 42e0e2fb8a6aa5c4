//! How this process shares the files that it may open: for clients, for HTTP connections, and a reserve for everything else.

use super::http_connections::{Limits, PerAddress};
use crate::settings::Settings;
use fanfare::Config;

/// HTTP connections, unless set: the most where there are files, and the least beside clients.
const HTTP_CONNECTIONS: usize = 8_192;
const GUARANTEED: usize = 512;

/// Files for everything else: shards, listeners, databases, Redis, the log's output.
const RESERVE: usize = 64;

/// What each kind of connection may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileBudget {
    /// Clients. 0: no limit is needed.
    pub(super) clients: usize,
    pub(super) http: Limits,
}

impl FileBudget {
    /// Shares `files`, where that is known. What is set is kept to as long as there are enough.
    pub(super) fn new(files: Option<u64>, settings: &Settings) -> Self {
        let wanted = settings.hub.max_connections;
        let most = match settings.max_http_connections {
            0 => HTTP_CONNECTIONS,
            set => set,
        };
        let per_address = match settings.max_http_connections_per_address {
            // An address that may have any number of clients may have them come all at once.
            0 if settings.hub.max_connections_per_address == 0 => PerAddress::All,
            0 => PerAddress::Half,
            set => PerAddress::Fixed(set),
        };
        let Some(files) = files.map(|files| usize::try_from(files).unwrap_or(usize::MAX)) else {
            return Self { clients: wanted, http: Limits { per_address, ..Limits::fixed(most) } };
        };
        // As many as there would be with a client for every file, where more clients are asked for.
        let max_connections = if wanted == 0 { files } else { wanted.min(files) };
        let uncounted = Config { max_connections, ..settings.hub.clone() }.uncounted_sockets();
        let files = files.saturating_sub(RESERVE + files / 64 + uncounted);
        let guaranteed = most.min(GUARANTEED).min(files / 4).max(1);
        let room = files.saturating_sub(guaranteed).max(1);
        let clients = if wanted == 0 { room } else { wanted.min(room) };
        Self { clients, http: Limits { most, guaranteed, files, per_address } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(files: u64, max_connections: usize, max_http_connections: usize) -> (usize, Limits) {
        let hub = Config { max_connections, ..Config::default() };
        let settings = Settings { hub, max_http_connections, ..Settings::default() };
        let FileBudget { clients, http } = FileBudget::new(Some(files), &settings);
        (clients, http)
    }

    #[test]
    fn there_is_a_reserve_whatever_is_set() {
        for files in [200, 300, 1_024, 20_000, 1_000_000, u64::MAX] {
            for (wanted, http) in [(0, 0), (10, 0), (50_000, 5_000), (usize::MAX, usize::MAX)] {
                let (clients, limits) = budget(files, wanted, http);
                let used = clients.checked_add(limits.guaranteed).expect("no overflow") as u64;
                assert!(used + RESERVE as u64 / 2 <= files, "{files} {wanted} {http}: {clients} + {limits:?}");
                assert!(limits.files < usize::try_from(files).unwrap(), "{files}: {limits:?}");
            }
        }
    }

    #[test]
    fn what_is_set_is_kept_to_where_there_are_files() {
        assert_eq!(budget(1_000_000, 50_000, 0).0, 50_000);
        assert_eq!(budget(20_000, 50_000, 0).0, 18_600);
        let (clients, http) = budget(1_000_000, 50_000, 9);
        assert_eq!((clients, http.most, http.guaranteed), (50_000, 9, 9));
        assert_eq!(budget(300, 50_000, 0).0, 119, "few files are shared too");
        let (clients, http) = budget(300, 10, 0);
        assert_eq!((clients, http.guaranteed, http.files), (10, 50, 200));
    }
}
