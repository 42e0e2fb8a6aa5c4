//! Divides the limit on open files between clients, HTTP connections, and a reserve for everything else.

use super::http_connections::{Limits, PerAddress};
use crate::settings::Settings;
use fanfare::Config;

/// Default limits on HTTP connections: the most if files are available, and the number that is always available.
const HTTP_CONNECTIONS: usize = 8_192;
const GUARANTEED: usize = 512;

/// Files for everything else: shards, listeners, databases, Redis and the log output.
const RESERVE: usize = 64;

/// The limits for each kind of connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileBudget {
    /// The limit on clients.
    pub(crate) clients: usize,
    pub(super) http: Limits,
}

impl FileBudget {
    /// Divides `files`, if the limit is known. Configured limits apply as long as there are enough files.
    pub(crate) fn new(files: Option<u64>, settings: &Settings) -> Self {
        let wanted = settings.hub.max_connections;
        let most = match settings.max_http_connections {
            0 => HTTP_CONNECTIONS,
            set => set,
        };
        let per_address = match settings.max_http_connections_per_address {
            // An address without a limit on clients may also connect all of them at once.
            0 if settings.hub.max_connections_per_address == 0 => PerAddress::All,
            0 => PerAddress::Half,
            set => PerAddress::Fixed(set),
        };
        let Some(files) = files.map(|files| usize::try_from(files).unwrap_or(usize::MAX)) else {
            return Self { clients: wanted, http: Limits { per_address, ..Limits::fixed(most) } };
        };
        // Without a limit on clients, or with more clients than files: computed for a client in every file.
        let max_connections = if wanted == 0 { files } else { wanted.min(files) };
        let uncounted = Config { max_connections, ..settings.hub.clone() }.uncounted_sockets();
        let files = files.saturating_sub(RESERVE + files / 64 + uncounted);
        let guaranteed = most.min(GUARANTEED).min(files / 4).max(1);
        let room = files.saturating_sub(guaranteed).max(1);
        let clients = if wanted == 0 { room } else { wanted.min(room) };
        Self { clients, http: Limits { max: most, guaranteed, files, per_address } }
    }
}

/// The least limit on open files that leaves a file for each of `max_connections` clients.
pub(crate) fn files_needed(settings: &Settings) -> u64 {
    let suffices = |files: u64| FileBudget::new(Some(files), settings).clients == settings.hub.max_connections;
    let (mut low, mut high) = (0, 1_u64);
    while !suffices(high) && high < u64::MAX / 2 {
        (low, high) = (high, 2 * high);
    }
    while high - low > 1 {
        let middle = low.midpoint(high);
        if suffices(middle) {
            high = middle;
        } else {
            low = middle;
        }
    }
    high
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
    fn the_reserve_is_kept_with_any_settings() {
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
    fn as_many_files_as_are_needed_suffice() {
        for max_connections in [10, 1_000, 50_000, 1_000_000] {
            let hub = Config { max_connections, ..Config::default() };
            let settings = Settings { hub, ..Settings::default() };
            let need = files_needed(&settings);
            assert_eq!(budget(need, max_connections, 0).0, max_connections);
            assert!(budget(need - 1, max_connections, 0).0 < max_connections, "{max_connections}: {need}");
        }
    }

    #[test]
    fn configured_limits_apply_if_there_are_enough_files() {
        assert_eq!(budget(1_000_000, 50_000, 0).0, 50_000);
        assert_eq!(budget(20_000, 50_000, 0).0, 18_600);
        let (clients, http) = budget(1_000_000, 50_000, 9);
        assert_eq!((clients, http.max, http.guaranteed), (50_000, 9, 9));
        assert_eq!(budget(300, 50_000, 0).0, 119, "few files are divided too");
        let (clients, http) = budget(300, 10, 0);
        assert_eq!((clients, http.guaranteed, http.files), (10, 50, 200));
    }
}
