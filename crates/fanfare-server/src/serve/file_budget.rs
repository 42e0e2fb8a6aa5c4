//! How this process shares the files that it may open: for clients, for HTTP connections, and a reserve for everything else.

use super::http_connections::Limits;
use crate::settings::Settings;

/// HTTP connections in all, unless set.
const HTTP_CONNECTIONS: usize = 1_024;

/// Files for everything else: shards, listeners, databases, Redis, the log's output, rejected clients that read why.
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
        let http = match settings.max_http_connections {
            0 => HTTP_CONNECTIONS,
            set => set,
        };
        let http_limits = |all| Limits::new(all, settings.max_http_connections_per_address);
        let Some(files) = files.map(|files| usize::try_from(files).unwrap_or(usize::MAX)) else {
            return Self { clients: wanted, http: http_limits(http) };
        };
        let shared = files.saturating_sub(RESERVE + files / 64);
        let http = http.min(shared / 4).max(1);
        let most = shared.saturating_sub(http).max(1);
        let clients = if wanted == 0 { most } else { wanted.min(most) };
        Self { clients, http: http_limits(http) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fanfare::Config;

    fn budget(files: u64, max_connections: usize, max_http_connections: usize) -> (usize, Limits) {
        let hub = Config { max_connections, ..Config::default() };
        let settings = Settings { hub, max_http_connections, ..Settings::default() };
        let FileBudget { clients, http } = FileBudget::new(Some(files), &settings);
        (clients, http)
    }

    #[test]
    fn there_is_a_reserve_whatever_is_set() {
        for files in [100, 300, 1_024, 20_000, 1_000_000, u64::MAX] {
            for (wanted, http) in [(0, 0), (10, 0), (50_000, 5_000), (usize::MAX, usize::MAX)] {
                let (clients, limits) = budget(files, wanted, http);
                let used = clients.checked_add(limits.all).expect("no overflow") as u64;
                assert!(used + RESERVE as u64 / 2 <= files, "{files} {wanted} {http}: {clients} + {limits:?}");
            }
        }
    }

    #[test]
    fn what_is_set_is_kept_to_where_there_are_files() {
        assert_eq!(budget(1_000_000, 50_000, 0), (50_000, Limits { all: 1_024, per_address: 512 }));
        assert_eq!(budget(1_000_000, 50_000, 9), (50_000, Limits { all: 9, per_address: 5 }));
        assert_eq!(budget(20_000, 50_000, 0), (18_600, Limits { all: 1_024, per_address: 512 }));
        assert_eq!(budget(300, 10, 0), (10, Limits { all: 58, per_address: 29 }));
    }
}
