// Everything that crosses the wire, as docs/messages.md describes it.

export interface HashFields {
  stemId: string;
  filepath: string;
  userId?: string | null;
  trackId?: string | null;
  stageId?: string | null;
  timestamp?: string | null;
  original_filename?: string | null;
}

export interface DuplicateFields {
  stemId: string;
  filepath: string;
  userId?: string | null;
  trackId?: string | null;
  /** Lower-case hex SHA-256. Without it the file is deleted unseen. */
  audio_hash?: string | null;
}

export interface AnalysisFields {
  stemId: string;
  filepath: string;
  userId?: string | null;
  trackId?: string | null;
  audio_hash?: string | null;
  timestamp?: string | null;
  original_filename?: string | null;
  /** 1 to 100000; 4000 by default. */
  num_peaks?: number | null;
  upstreamId?: string | null;
}

export interface MixFields {
  stem_paths: string[];
  stageId: string;
  upstreamId?: string | null;
}

/** The envelope shape of a message body. */
export interface Envelope<Fields> {
  task: string;
  id: string;
  args: [];
  kwargs: Fields;
}

/** POST /hash-check */
export interface HashCheck {
  stemId: string;
  userId: string | null;
  trackId: string | null;
  stageId: string | null;
  filepath: string;
  audio_hash: string;
  timestamp: string | null;
  original_filename: string;
  status: 'hash_generated';
  /** Other keys with the same bytes, at most 20. */
  known_copies: string[];
}

export interface AnalysisResult {
  audio_data_hash: string;
  waveform_data_path: string;
  /** Bytes. */
  file_size: number;
  /** Seconds. */
  duration: number;
  /** Hz. */
  sample_rate: number;
  num_peaks: number;
}

export interface Failure {
  error: string;
  error_message: string;
  error_code: string;
  retryable: false;
}

interface CompletionOf<Status, Result> {
  stemId: string;
  userId: string | null;
  trackId: string | null;
  upstreamId: string | null;
  status: Status;
  result: Result;
  timestamp: string;
  original_filename: string;
  /** Seconds. */
  processing_time: number | null;
  audio_wave_path: string | null;
}

/** POST /completion; the result is null after a duplicate was deleted. */
export type Completion =
  | CompletionOf<'SUCCESS', AnalysisResult | null>
  | CompletionOf<'FAILURE', Failure>;

interface MixingCompleteOf<Status, Path> {
  stageId: string;
  upstreamId: string | null;
  status: Status;
  mixed_file_path: Path;
  waveform_data_path: Path;
  stem_count: number;
  stem_paths: string[];
  task_id: string;
  processed_at: string;
}

/** POST /mixing-complete */
export type MixingComplete =
  | MixingCompleteOf<'SUCCESS', string>
  | (MixingCompleteOf<'FAILURE', null> & { result: Failure });

/** The waveform object in S3. */
export interface Waveform {
  peaks: number[];
  duration: number;
  sample_rate: number;
  num_peaks: number;
  created_at: string;
  channels: number;
  frames: number;
  /** The file breaks off; this is the waveform of what is there. */
  truncated: boolean;
}
